"""The trainer; it never names a method."""
