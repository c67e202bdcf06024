"""The comparison that `make bench` prints: the node beside its yardsticks and beside other job queues, in one run.

    bare, committed, smallest, echo, slow
                what the node is compared with, and the containers: small servers, one file each
    peers       the same work by other job queues, in environments of their own
    subjects    starts and stops all servers, as processes
    jobs        the jobs that are sent, and the check of what comes back
    load        the load generator
    client      what a client of the API does: send, wait, read, check
    clock       time on the wall and on the processors
    counts      what a load costs the store
    measures    throughput, one function per measure
    latency     one job at a time, and containers that take their time
    rivals      the measures of the other queues
    rounds      one round of all measures; median and range of several
    goals       what should be reached
    machine     what it ran on
    report      the tables, and the JSON file
    plot        the same as a picture
    printed     how figures are printed and written
    growth      a run of its own: the node with ever more jobs in its store
    kept        fills a store with jobs that have ended

A new subject is a function in `subjects`; a new measure is a function in `measures` or `latency`, a line in `rounds`
and a row in `report`.
"""
