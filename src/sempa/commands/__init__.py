"""The commands of `sempa`, one module each: `add_arguments` describes the arguments, `run` does the work.

A module imports what its command needs when it runs: `sempa --help` should not wait for torch.
"""
