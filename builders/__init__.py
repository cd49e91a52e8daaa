"""From checkpoint to bundle: export, precision plan, quantization, engines, audit and gate. Nothing heavy is loaded."""
