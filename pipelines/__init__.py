"""What Freshet's pipelines do.

Everything below this level is framework-free domain code: only ``definitions``, ``use_case``, ``jobs`` and
``schedules`` may import dagster. Imports run one way: ``pipelines.<domain>`` <- ``resources`` <- ``assets``,
``sensors`` <- ``pipelines.use_case`` <- ``pipelines.definitions``.
"""
