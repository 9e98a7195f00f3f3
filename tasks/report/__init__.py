"""The stage `report`: one self-contained page about a campaign so far."""
