"""Stage sft: demonstrations and a base model in, the first policy of the loop out."""
