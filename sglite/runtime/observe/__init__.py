"""Seeing the server: what is counted, timed, logged and traced of every request, and what never is.

    exchange.py    one HTTP request, and the generations that it began
    observer.py    the one object that is told; hands on to the others
    tally.py       counters and histograms          metrics.py   ... as Prometheus shows them
    timeline.py    the last requests, by id         logs.py      a line for each        traces.py   a span for each

Promises: no text of a prompt or an output gets in here, nor any part of one; the number of time series and what is
remembered are bounded; counters agree with the ``meta_info`` of the answers to the token; nothing here asks the engine
for anything. Imports nothing above it: the server tells, and is not known.
"""
