"""Processes of this host: started, watched, paused, killed by name, and none left when the harness is gone."""
