"""What is wrong with a sample set, checkpoint, statistics file or record, and with a machine.

Each cause of a wrong score (causes.toml) has a detector: a pure function of what it looks at that
measures one number, compares it with the most that clean inputs show, and gives a `Finding` or
None. `examine` recognises a file by its content, makes what the detectors need (features once,
a few images of a checkpoint) and sorts what they find.
"""
