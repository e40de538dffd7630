"""A judged run, told: terminal, JSON, HTML, JUnit."""
