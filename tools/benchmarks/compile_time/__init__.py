"""Compile time: what fxprune adds to the time that torch itself takes for an export, and how it grows with the number of layers."""
