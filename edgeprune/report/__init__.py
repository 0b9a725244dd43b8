"""What a run measured, shown: tables for the terminal and one self-contained page. Reads records only."""
