"""Proof that a server is ours, before it is sent its key: it answers a challenge that only who has the key can answer.

Whoever asks sends random text in the header CHALLENGE of a path that is open to all; the answer carries in PROOF a keyed hash of
that text and of the port that was asked, so that a program in between cannot pass the challenge on to the real server.
"""

import hashlib
import hmac
import secrets

CHALLENGE = "x-entropic-challenge"
PROOF = "x-entropic-proof"


def new_challenge() -> str:
    """Random text, never used before."""
    return secrets.token_hex(16)


def proof_of(key: str, challenge: str, port: int) -> str:
    """The answer of a server with `key` on `port` to `challenge`."""
    return hmac.new(key.encode(), f"{challenge} {port}".encode(), hashlib.sha256).hexdigest()


def proves(proof: str, key: str, challenge: str, port: int) -> bool:
    """Whether `proof` comes from a server that has `key`."""
    return hmac.compare_digest(proof.encode(), proof_of(key, challenge, port).encode())
