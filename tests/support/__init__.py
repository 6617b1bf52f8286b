"""What tests share: helpers and planted models."""
