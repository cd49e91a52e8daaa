"""From checkpoint to bundle: export, precision plan, quantisation, engines, audit and gate. Nothing heavy is loaded."""
