"""Side-by-side measurements; what they found is in results/, each with its machine and date."""
