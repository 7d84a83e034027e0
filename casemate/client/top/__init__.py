"""What a running host is doing, from its metrics page: readings, rates, quantiles, a view."""
