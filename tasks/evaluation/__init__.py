"""How a policy does on held-out prompts, and whether it becomes the champion."""
