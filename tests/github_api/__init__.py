"""Two stand-ins for GitHub's API: `standin` remembers, `contract` answers by GitHub's official description."""
