"""Where things lie: affines (numpy), sampling and correspondence (torch)."""
