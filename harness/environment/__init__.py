"""The environment of a run: real broker, real proxies, real processes, and nothing left of them afterwards.

`opening` is the story: it takes what was chosen (`choice`), has the parts put together (`assembly`) and hands out what
runs (`running`). The parts are in folders: `nats`, `toxiproxy`, `postgres`. A host starts them (`host`): either
`processes.supervisor` or `containers.host`. `processes.ownership` and `processes.guardian` see to it that nothing
outlives the run, and `ports` keeps runs apart.
"""
