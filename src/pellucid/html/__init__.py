"""One page builder for every HTML report: self-contained, no network, light and dark, phone and paper."""
