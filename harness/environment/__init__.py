"""The environment of a run: real broker, real proxies, real processes, and nothing left of them afterwards.

Read `embedded` first: it is the story. Below it, `supervisor` owns the processes, `ownership` and `guardian` make sure
that nothing outlives the run, `ports` keeps runs apart, `nats_server` and `toxiproxy_server` are the two real parts.
"""
