"""The grid behind ``make reproduce-table``: its cells, their runs, their report. Needs detectron2."""
