"""Multi-party computation (chapter 12): sharing as a lesson, and regression on shares with TF Encrypted between processes.

A demonstration, not a deployment: the protocol trusts each server to follow it, and the analyst to ask for what was agreed.
"""

from pprml.multiparty import regression, sharing, wire
from pprml.multiparty.parties import SERVERS, Study, attack_read_file, find_ports

__all__ = ["SERVERS", "Study", "attack_read_file", "find_ports", "regression", "sharing", "wire"]
