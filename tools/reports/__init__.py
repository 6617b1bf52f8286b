"""Reports that commands write: tables, pages, charts, manifests."""
