"""The files of a repository that mean something to Mosaic or to an agent."""

from __future__ import annotations

RULES_FILES: tuple[str, ...] = (".mosaic.toml", ".gitea/mosaic.toml")  # the first one that exists holds

# Files that programs take for instructions to an agent. They are absent from the worktree while the agent works, and
# are put back before the commit. A pattern without a slash means any directory.
AGENT_FILES: tuple[str, ...] = (
    "AGENTS.md", "AGENT.md", "AGENTS.override.md", "CLAUDE.md", "CLAUDE.local.md", "GEMINI.md", "QWEN.md",
    "/SOUL.md", "/TOOLS.md", "/IDENTITY.md", "/USER.md", "/BOOTSTRAP.md", "/HEARTBEAT.md", "/MEMORY.md",
    ".openclaw", ".claude", ".claude.json", ".codex", ".gemini", ".cursor", ".cursorrules", ".cursorignore",
    ".windsurf", ".windsurfrules", ".clinerules", ".roo", ".roorules", ".roomodes", ".kilocode", ".continue", ".aider*",
    ".goosehints", ".junie", ".kiro", ".agents", ".agent", ".mcp.json", "/mcp.json", ".vscode/mcp.json",
    ".github/copilot-instructions.md", ".github/instructions", ".github/prompts", ".github/agents", ".github/chatmodes",
)  # fmt: skip
