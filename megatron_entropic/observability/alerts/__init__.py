"""Alerts: trouble that a run meets, said when it begins and when it is over.

conditions.py   what is trouble, seen in a step's metrics
episodes.py     since when, and for how long
webhook.py      alerts posted to a URL
"""

from megatron_entropic.observability.alerts.webhook import Webhook

__all__ = ["Webhook"]
