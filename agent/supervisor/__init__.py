"""The process that holds one attempt's sandbox and outlives the agent."""
