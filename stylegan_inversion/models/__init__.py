"""Networks: each file holds the modules of one box of a paper's figure, with their config dataclass."""
