"""What happens to a cell: plan, prompts, shared prefill, samples, rows."""
