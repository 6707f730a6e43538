"""The machinery of the course, which a reader never meets: the command line, the runner, the contract and the ledger's upkeep.

It knows notebooks as files. No notebook and no topic knows it.
"""
