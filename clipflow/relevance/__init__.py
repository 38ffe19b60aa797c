"""How good results are: captioned and labelled pictures, measures with intervals, reports."""
