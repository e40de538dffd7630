"""The broker: one nats-server of any version, or three that are a cluster."""
