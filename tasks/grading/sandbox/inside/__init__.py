"""What runs within a sandbox, with nothing but the standard library; the answer's side here is never trusted."""
