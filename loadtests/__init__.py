"""Load by Locust, in an open loop, with every order on record.

Read `loadtests.locustfile` first. Importing that, `placing` or `connection` patches the process (gevent), so nothing
but Locust does; the rest is plain Python.
"""
