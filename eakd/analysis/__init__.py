"""The paper's figures and what comes after them, computed from what runs leave."""
