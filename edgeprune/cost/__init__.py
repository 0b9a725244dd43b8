"""What a layer costs: MACs, bytes and measured milliseconds, as functions of its widths."""
