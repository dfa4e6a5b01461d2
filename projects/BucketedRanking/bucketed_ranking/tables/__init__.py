"""The grid behind ``make reproduce-table``: its cells, their runs, its report."""
