"""The mission: who owns which page, and how messages get from one peer to the other."""
