"""The proof: real processes, killed, frozen, starved and lied to, and at the end everything is counted.

`make proof PROOF_MINUTES=60` runs all scenarios and prints one table; nothing lost and nothing doubled, or exit code 1.
"""
