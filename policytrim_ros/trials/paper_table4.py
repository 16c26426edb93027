"""Table 4 of PolicyTrim (arXiv 2606.22540): pi0.5 on a real AgileX Piper. Not ours; printed beside our figures, never mixed with them."""

SOURCE = "PolicyTrim, arXiv 2606.22540, table 4: pi0.5 on a real AgileX Piper with two RealSense D435i"
TRIALS = "the number of trials is not stated; all rates are multiples of 5 %, as 20 trials in each cell would give"

SUCCESS_PERCENT = {  # (task, setting): baseline, PolicyTrim
    ("flip_mug", "standard"): (70, 75),
    ("hang_mug", "standard"): (60, 65),
    ("tape_box", "standard"): (95, 95),
    ("flip_mug", "dynamic"): (70, 70),
    ("tape_box", "dynamic"): (65, 70),
}
SECONDS = {
    ("flip_mug", "standard"): (14.6, 7.6),
    ("hang_mug", "standard"): (15.6, 8.7),
    ("tape_box", "standard"): (17.5, 9.4),
}
