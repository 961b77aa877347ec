"""How much attention each token receives from the queries just after it, from the log-sum-exps of an attention kernel."""

from sqkernels.attention_received.api import attention_received

__all__ = ["attention_received"]
