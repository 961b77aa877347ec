"""What a cache holds, has spent, and did not compress."""
