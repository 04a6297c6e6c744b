"""Tests, by the part that they test."""
