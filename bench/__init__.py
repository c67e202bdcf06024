"""The comparison that `make bench` prints: the node beside a bare handler and a bare container, in one run.

    bare, echo  what the node is compared with: two small servers
    subjects    starts and stops those and the node, as processes
    jobs        the jobs that are sent, and the check of what comes back
    load        the load generator
    clock       time on the wall and on the processors
    measures    one function per measure
    rounds      one round of all measures; median, range and ratio of several
    machine     what it ran on
    report      the tables, and the JSON file

A new subject is a function in `subjects`; a new measure is a function in `measures`, a line in `rounds` and a row in
`report`.
"""
