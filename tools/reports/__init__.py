"""What a command writes: reports, pages, charts, manifests."""
