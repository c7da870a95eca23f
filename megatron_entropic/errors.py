"""The one thing all our errors share."""


class ReportedError(Exception):
    """An error whose message is all a user needs: it names the file, field, rank or server, and what to do.

    The command line and the ranks print it as one line, without a traceback (which goes to the rank's log file).
    """
