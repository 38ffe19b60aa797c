"""The rules between objects that no schema knows. Each is a function over a Cluster, entered under its name."""

from . import rules_network, rules_pods, rules_scaling, rules_security, rules_workloads
from .cluster import RULES, Fault, check

__all__ = [
    'RULES',
    'Fault',
    'check',
    'rules_network',
    'rules_pods',
    'rules_scaling',
    'rules_security',
    'rules_workloads',
]
