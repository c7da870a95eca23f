"""Runs in the sandbox's own interpreter, started bare (no site, no package around it): the standard library alone.

That interpreter imports this folder as a package `inside` of its own, hence the relative imports.
"""
