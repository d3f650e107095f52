"""What the library costs on this machine, as ratios measured side by side in one run."""
