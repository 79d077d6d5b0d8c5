"""What stored runs say: tables, paired comparisons and figures."""
