"""The simulator: the cohort grid, its workers, engines, presets and reports."""
