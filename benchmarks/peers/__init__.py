"""The peers: each module runs in an environment of its own, and says in NOTE how its system is set up.

Each is the fastest set-up that its documentation describes and that one would run: one worker process, no
logs of single jobs, results that expire, and polling each millisecond where a system polls.
"""
